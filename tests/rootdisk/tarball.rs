//! Layers made by hand, so that they can also be wrong.

use tar::Header;

/// One entry.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) flag: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) body: Vec<u8>,
    /// PAX records.
    pub(crate) pax: Vec<(String, Vec<u8>)>,
}

/// An entry of a type.
pub(crate) fn item(flag: u8, path: impl AsRef<[u8]>) -> Item {
    Item {
        flag,
        path: path.as_ref().to_vec(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        device: (0, 0),
        body: Vec::new(),
        pax: Vec::new(),
    }
}

pub(crate) fn file(path: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Item {
    Item { body: body.as_ref().to_vec(), ..item(b'0', path) }
}

pub(crate) fn folder(path: impl AsRef<[u8]>) -> Item {
    Item { mode: 0o755, ..item(b'5', path) }
}

pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { mode: 0o777, link: target.as_ref().to_vec(), ..item(b'2', path) }
}

pub(crate) fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(b'1', path) }
}

impl Item {
    pub(crate) fn mode(self, mode: u32) -> Item {
        Item { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Item {
        Item { uid, gid, ..self }
    }

    pub(crate) fn mtime(self, mtime: u64) -> Item {
        Item { mtime, ..self }
    }

    pub(crate) fn device(self, major: u32, minor: u32) -> Item {
        Item { device: (major, minor), ..self }
    }

    pub(crate) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Appends the entry as GNU tar would, with PAX records before it where it has any.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let body: Vec<u8> = self.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            raw(out, b'x', b"././@PaxHeader", &body);
        }
        if self.path.len() > 100 {
            raw(out, b'L', b"././@LongLink", &[&self.path[..], b"\0"].concat());
        }
        if self.link.len() > 100 {
            raw(out, b'K', b"././@LongLink", &[&self.link[..], b"\0"].concat());
        }
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        let name = &self.path[..self.path.len().min(100)];
        old.name[..name.len()].copy_from_slice(name);
        let link = &self.link[..self.link.len().min(100)];
        old.linkname[..link.len()].copy_from_slice(link);
        old.linkflag = [self.flag];
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        header.set_size(self.body.len() as u64);
        header.set_device_major(self.device.0).unwrap();
        header.set_device_minor(self.device.1).unwrap();
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        padded(out, &self.body);
    }
}

/// A PAX record.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// Appends a header of `flag` with a body.
pub(crate) fn raw(out: &mut Vec<u8>, flag: u8, name: &[u8], body: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkflag = [flag];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(body.len() as u64);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    padded(out, body);
}

fn padded(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A whole layer.
pub(crate) fn layer(items: impl IntoIterator<Item = Item>) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        item.write(&mut out);
    }
    out.extend_from_slice(&[0; 1024]);
    out
}
