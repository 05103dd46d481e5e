//! The host's end of the guest's way to its engine (`iii_protocol::engine` is the contract).
//!
//! Every connection of the guest is joined to a connection of its own to the worker's engine, and to nothing else.
//! The guest is always read, also while the engine is being connected to or does not read: libkrun writes to this
//! socket in blocking mode, and one that is not read would hold up the whole machine. The window bounds what waits.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use iii_protocol::engine::{
    Engine, KIND_CREDIT, KIND_DATA, KIND_END, MAX_CONNECTIONS, MAX_DATA_BYTES, ReceiveWindow, SendWindow,
};
use iii_protocol::frame::{Frame, FrameError, HEADER_BYTES, header};
use iii_protocol::session::{TooMuchCredit, WindowExceeded, credit_payload, parse_credit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixListener, UnixStream, tcp, unix};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::vm::wire::FrameReader;

/// How long an engine may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The largest `length` of a frame from the guest: there are none but data and small ones.
const MAX_FRAME_BYTES: usize = MAX_DATA_BYTES + 1;
/// What may wait for a guest that does not read before neither end is read for it.
const MAX_WAITING_BYTES: usize = MAX_DATA_BYTES;

/// Why a connection ended before both sides had said all.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the engine cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("the engine's end: {0}")]
    Engine(io::Error),
    #[error("the guest's end: {0}")]
    Guest(#[from] io::Error),
    #[error("the guest closed it")]
    GuestLeft,
    #[error("the guest broke the contract: {0}")]
    Frame(#[from] FrameError),
    #[error("the guest broke the contract: {0}")]
    Window(#[from] WindowExceeded),
    #[error("the guest broke the contract: {0}")]
    Credit(#[from] TooMuchCredit),
    #[error("the guest broke the contract: a frame of kind {0} is out of place")]
    Kind(u8),
}

/// Carries the guest's connections for as long as there is a machine. An engine that is not there is told in `events`
/// once, until it is there again.
pub(super) async fn serve(listener: UnixListener, engine: Engine, events: mpsc::Sender<String>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (engine, is_told) = (Arc::new(engine), Arc::new(AtomicBool::new(false)));
    loop {
        let guest = match listener.accept().await {
            Ok((guest, _)) => guest,
            Err(error) => {
                tracing::warn!(%error, "a connection to the engine is lost");
                continue;
            }
        };
        // The agent keeps to the limit; whoever does not is not waited for.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("the guest has {MAX_CONNECTIONS} connections to its engine already");
            continue;
        };
        let (engine, is_told, events) = (Arc::clone(&engine), Arc::clone(&is_told), events.clone());
        tokio::spawn(async move {
            let _place = place;
            let carried = carry(guest, &engine, &is_told).await;
            let Err(lost) = carried else { return };
            tracing::debug!(%lost, "a connection to the engine is lost");
            if let Lost::Unreachable(error) = lost
                && !is_told.swap(true, Ordering::Relaxed)
            {
                // A queue that is full has more important things to say.
                let _ = events.try_send(format!("engine {engine} cannot be reached: {error}"));
            }
        });
    }
}

async fn carry(guest: UnixStream, engine: &Engine, is_told: &AtomicBool) -> Result<(), Lost> {
    let (reader, to_guest) = guest.into_split();
    let mut frames = FrameReader::with_limit(reader, MAX_FRAME_BYTES);
    let mut up = Up::default();
    let mut down = Down::default();
    let stream = {
        let mut connecting = std::pin::pin!(timeout(CONNECT_LIMIT, connect(engine)));
        loop {
            tokio::select! {
                connected = &mut connecting => break connected
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(Lost::Unreachable)?,
                frame = frames.next() => take(frame?, &mut up, &mut down)?,
            }
        }
    };
    is_told.store(false, Ordering::Relaxed);
    // Frames of a guest are answered at once; without the option it is only slower.
    let _ = stream.set_nodelay(true);
    let (from_engine, mut to_engine) = stream.into_split();
    loop {
        up.write(&to_engine, &mut down)?;
        if up.ended && up.waiting.is_empty() && !up.shut {
            to_engine.shutdown().await.map_err(Lost::Engine)?;
            up.shut = true;
        }
        down.write(&to_guest)?;
        if up.shut && down.ended && down.waiting.is_empty() {
            return outlast(&mut frames).await;
        }
        tokio::select! {
            frame = frames.next() => take(frame?, &mut up, &mut down)?,
            ready = from_engine.readable(), if down.may_read() => {
                ready.map_err(Lost::Engine)?;
                down.read(&from_engine)?;
            }
            ready = to_engine.writable(), if !up.waiting.is_empty() && down.has_room() => ready.map_err(Lost::Engine)?,
            ready = to_guest.writable(), if !down.waiting.is_empty() => ready?,
        }
    }
}

/// For `localhost` what a resolver says does not matter.
async fn connect(engine: &Engine) -> io::Result<TcpStream> {
    let Engine { host, port } = engine;
    if host.eq_ignore_ascii_case("localhost") {
        let places =
            [SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), SocketAddr::from((Ipv6Addr::LOCALHOST, *port))];
        return TcpStream::connect(&places[..]).await;
    }
    TcpStream::connect((host.as_str(), *port)).await
}

/// All was said on both sides. The guest closes when its program has taken it.
async fn outlast(frames: &mut FrameReader<unix::OwnedReadHalf>) -> Result<(), Lost> {
    while let Some(frame) = frames.next().await? {
        if frame.kind != KIND_CREDIT {
            return Err(Lost::Kind(frame.kind));
        }
    }
    Ok(())
}

fn take(frame: Option<Frame>, up: &mut Up, down: &mut Down) -> Result<(), Lost> {
    let Some(frame) = frame else { return Err(Lost::GuestLeft) };
    match frame.kind {
        KIND_DATA if !up.ended => {
            up.window.received(frame.payload.len())?;
            up.waiting.extend_from_slice(&frame.payload);
        }
        KIND_END if !up.ended && frame.payload.is_empty() => up.ended = true,
        KIND_CREDIT => {
            let bytes = parse_credit(&frame.payload).ok_or(Lost::Kind(KIND_CREDIT))?;
            down.window.credited(bytes)?;
        }
        kind => return Err(Lost::Kind(kind)),
    }
    Ok(())
}

/// From the guest to the engine.
#[derive(Default)]
struct Up {
    /// At most one window.
    waiting: BytesMut,
    window: ReceiveWindow,
    /// The guest has said all.
    ended: bool,
    /// And the engine knows.
    shut: bool,
}

impl Up {
    /// As much as the engine takes now.
    fn write(&mut self, engine: &tcp::OwnedWriteHalf, down: &mut Down) -> Result<(), Lost> {
        // The credit for it has to have a place.
        while !self.waiting.is_empty() && down.has_room() {
            match engine.try_write(&self.waiting) {
                Ok(written) => {
                    self.waiting.advance(written);
                    if let Some(credit) = self.window.taken(written) {
                        down.put(KIND_CREDIT, &credit_payload(credit))?;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Lost::Engine(e)),
            }
        }
        Ok(())
    }
}

/// From the engine to the guest.
#[derive(Default)]
struct Down {
    /// Encoded frames.
    waiting: BytesMut,
    window: SendWindow,
    /// The engine has said all.
    ended: bool,
}

impl Down {
    /// Whether what waits for the guest leaves room for more.
    fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING_BYTES
    }

    fn may_read(&self) -> bool {
        !self.ended && self.has_room() && self.window.room() > 0
    }

    /// What the engine has sent, as one frame.
    fn read(&mut self, engine: &tcp::OwnedReadHalf) -> Result<(), Lost> {
        let size = self.window.room().min(MAX_DATA_BYTES);
        let head = self.waiting.len();
        self.waiting.reserve(HEADER_BYTES + size);
        self.waiting.put_bytes(0, HEADER_BYTES);
        match engine.try_read_buf(&mut (&mut self.waiting).limit(size)) {
            Ok(0) => {
                self.waiting.truncate(head);
                self.ended = true;
                self.put(KIND_END, &[])?;
            }
            Ok(read) => {
                self.window.sent(read);
                self.waiting[head..head + HEADER_BYTES].copy_from_slice(&header(KIND_DATA, read)?);
            }
            Err(error) => {
                self.waiting.truncate(head);
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(Lost::Engine(error));
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, kind: u8, payload: &[u8]) -> Result<(), FrameError> {
        self.waiting.put_slice(&header(kind, payload.len())?);
        self.waiting.put_slice(payload);
        Ok(())
    }

    /// As much as the guest takes now.
    fn write(&mut self, guest: &unix::OwnedWriteHalf) -> Result<(), Lost> {
        while !self.waiting.is_empty() {
            match guest.try_write(&self.waiting) {
                Ok(written) => self.waiting.advance(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Lost::Guest(e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use iii_protocol::engine::MAX_DATA_BYTES;
    use iii_protocol::session::WINDOW_BYTES;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::vm::wire::write_frame;

    /// A way to an engine on `host`, of which the test plays both ends.
    struct Bed {
        dir: tempfile::TempDir,
        engine: TcpListener,
        events: mpsc::Receiver<String>,
    }

    impl Bed {
        async fn new() -> Bed {
            let engine = TcpListener::bind("127.0.0.1:0").await.unwrap();
            Bed::with(engine).await
        }

        async fn with(engine: TcpListener) -> Bed {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("engine.sock")).unwrap();
            let (sender, events) = mpsc::channel(4);
            let address = Engine { host: "localhost".into(), port: engine.local_addr().unwrap().port() };
            tokio::spawn(serve(listener, address, sender));
            Bed { dir, engine, events }
        }

        async fn guest(&self) -> UnixStream {
            UnixStream::connect(self.dir.path().join("engine.sock")).await.unwrap()
        }
    }

    fn data(bytes: &[u8]) -> Frame {
        Frame { kind: KIND_DATA, payload: bytes.to_vec() }
    }

    fn end() -> Frame {
        Frame { kind: KIND_END, payload: Vec::new() }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
        let bed = Bed::new().await;
        let (reader, mut writer) = bed.guest().await.into_split();
        let (mut engine, _) = bed.engine.accept().await.unwrap();
        let mut frames = FrameReader::new(reader);
        write_frame(&mut writer, &data(b"hel")).await.unwrap();
        write_frame(&mut writer, &data(b"lo")).await.unwrap();
        write_frame(&mut writer, &end()).await.unwrap();
        let mut heard = String::new();
        engine.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        engine.write_all(b"answer").await.unwrap();
        assert_eq!(frames.next().await.unwrap(), Some(data(b"answer")));
        drop(engine);
        assert_eq!(frames.next().await.unwrap(), Some(end()));
        // The guest takes its time.
        tokio::task::yield_now().await;
        assert!(writer.try_write(b"").is_ok());
        drop(writer);
        assert_eq!(frames.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_a_closed_connection_and_told_once() {
        let Bed { dir, engine, mut events } = Bed::new().await;
        let address = engine.local_addr().unwrap();
        drop(engine);
        for _ in 0..3 {
            let mut guest = UnixStream::connect(dir.path().join("engine.sock")).await.unwrap();
            assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
        }
        let told = events.recv().await.unwrap();
        assert!(
            told.starts_with(&format!("engine localhost:{} cannot be reached: ", address.port())),
            "{told}"
        );
        assert!(events.try_recv().is_err(), "told again");
        // Once it is there, its next absence is news.
        let engine = TcpListener::bind(address).await.unwrap();
        let mut guest = UnixStream::connect(dir.path().join("engine.sock")).await.unwrap();
        let (mut accepted, _) = engine.accept().await.unwrap();
        accepted.write_all(b"x").await.unwrap();
        guest.read_exact(&mut [0; HEADER_BYTES + 1]).await.unwrap();
        drop((engine, accepted, guest));
        let mut guest = UnixStream::connect(dir.path().join("engine.sock")).await.unwrap();
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
        assert!(events.recv().await.is_some());
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_is_gone_for_the_engine_too() {
        let bed = Bed::new().await;
        let guest = bed.guest().await;
        let (mut engine, _) = bed.engine.accept().await.unwrap();
        drop(guest);
        assert_eq!(engine.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_guest_is_read_though_its_engine_is_not_and_stops_at_its_window() {
        let bed = Bed::new().await;
        let (_reader, mut writer) = bed.guest().await.into_split();
        let (engine, _) = bed.engine.accept().await.unwrap();
        // The engine reads nothing. What its socket takes is credited; one window more is held, and that is all.
        let flood = async {
            loop {
                if write_frame(&mut writer, &data(&[7; MAX_DATA_BYTES])).await.is_err() {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(20), flood).await.expect("the flood ends with the connection");
        drop(engine);
    }

    #[tokio::test]
    async fn what_breaks_the_contract_loses_its_connection_and_no_other() {
        let bed = Bed::new().await;
        let mut honest = bed.guest().await;
        let (mut engine, _) = bed.engine.accept().await.unwrap();
        for frames in [
            vec![Frame { kind: 9, payload: Vec::new() }],
            vec![data(&[0; MAX_DATA_BYTES + 1])],
            vec![Frame { kind: KIND_CREDIT, payload: credit_payload(1).to_vec() }],
            vec![Frame { kind: KIND_CREDIT, payload: vec![1] }],
            vec![Frame { kind: KIND_END, payload: vec![1] }],
            vec![end(), data(b"more")],
            vec![end(), end()],
        ] {
            let (mut reader, mut writer) = bed.guest().await.into_split();
            let (_its_engine, _) = bed.engine.accept().await.unwrap();
            for frame in &frames {
                // It may be closed before the last one.
                let _ = write_frame(&mut writer, frame).await;
            }
            let mut heard = Vec::new();
            let _ = reader.read_to_end(&mut heard).await;
            assert!(heard.len() <= HEADER_BYTES, "{frames:?}");
        }
        write_frame(&mut honest, &data(b"x")).await.unwrap();
        engine.read_exact(&mut [0]).await.unwrap();
    }

    #[tokio::test]
    async fn much_goes_through_in_both_directions_at_once() {
        const BYTES: usize = 8 * WINDOW_BYTES;
        let bed = Bed::new().await;
        let (reader, mut writer) = bed.guest().await.into_split();
        let (engine, _) = bed.engine.accept().await.unwrap();
        let (mut from_guest, mut to_guest) = engine.into_split();
        let send = tokio::spawn(async move { to_guest.write_all(&vec![1; BYTES]).await.unwrap() });
        let receive = tokio::spawn(async move {
            let mut heard = vec![0; BYTES];
            from_guest.read_exact(&mut heard).await.unwrap();
            assert!(heard.iter().all(|byte| *byte == 2));
        });
        let mut frames = FrameReader::new(reader);
        let (mut room, mut took, mut window) = (SendWindow::default(), 0, ReceiveWindow::default());
        let mut sent = 0;
        while took < BYTES || sent < BYTES {
            let size = room.room().min(MAX_DATA_BYTES).min(BYTES - sent);
            if size > 0 {
                write_frame(&mut writer, &data(&vec![2; size])).await.unwrap();
                room.sent(size);
                sent += size;
                continue;
            }
            let frame = frames.next().await.unwrap().unwrap();
            if frame.kind == KIND_CREDIT {
                room.credited(parse_credit(&frame.payload).unwrap()).unwrap();
                continue;
            }
            window.received(frame.payload.len()).unwrap();
            took += frame.payload.len();
            if let Some(credit) = window.taken(frame.payload.len()) {
                let payload = credit_payload(credit).to_vec();
                write_frame(&mut writer, &Frame { kind: KIND_CREDIT, payload }).await.unwrap();
            }
        }
        send.await.unwrap();
        receive.await.unwrap();
    }
}
