"""Runs a command inside a worker: session.py SOCKET WORKER COMMAND... (docs/protocol.md; standard library only)."""
import json, os, socket, struct, sys, threading

OPEN, STDIN, STDIN_END, CREDIT = 1, 2, 3, 7
STARTED, STDOUT, STDERR, END, STDIN_CLOSED = 32, 33, 34, 35, 36
WINDOW, PIECE = 256 * 1024, 64 * 1024

path, worker, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
line = socket.socket(socket.AF_UNIX)
line.connect(path)
line.sendall(f"POST /v1/workers/{worker}/session HTTP/1.1\r\nHost: iii\r\n"
             "Connection: Upgrade\r\nUpgrade: iii-session/1\r\n\r\n".encode())
reader = line.makefile("rb")
status = reader.readline().split(b" ", 2)[1]
length = 0
while (header := reader.readline().strip()):
    if header.lower().startswith(b"content-length:"):
        length = int(header.split(b":")[1])
if status != b"101":
    sys.exit(reader.read(length).decode())

sending, room = threading.Lock(), threading.Condition()
credit, open_input = WINDOW, True


def send(kind, payload=b""):
    with sending:
        line.sendall(struct.pack(">IB", len(payload) + 1, kind) + payload)


def feed():
    global credit
    while piece := os.read(0, PIECE):
        while piece:
            with room:
                room.wait_for(lambda: credit > 0 or not open_input)
                if not open_input:
                    return
                part, piece = piece[:credit], piece[credit:]
                credit -= len(part)
            send(STDIN, part)
    send(STDIN_END)


send(OPEN, json.dumps({"version": 1, "task": {"kind": "exec", "argv": argv, "stdin": True}}).encode())
taken = 0
while True:
    size, kind = struct.unpack(">IB", reader.read(5))
    payload = reader.read(size - 1)
    if kind == STARTED:
        threading.Thread(target=feed, daemon=True).start()
    elif kind in (STDOUT, STDERR):
        stream = sys.stdout.buffer if kind == STDOUT else sys.stderr.buffer
        stream.write(payload)
        stream.flush()
        taken += len(payload)
        if taken >= PIECE:
            send(CREDIT, struct.pack(">I", taken))
            taken = 0
    elif kind in (CREDIT, STDIN_CLOSED):
        with room:
            credit += struct.unpack(">I", payload)[0] if kind == CREDIT else 0
            open_input = open_input and kind == CREDIT
            room.notify()
    elif kind == END:
        cause = json.loads(payload)["cause"]
        codes = {"timed-out": 124, "could-not-start": 125, "cannot-execute": 126, "not-found": 127}
        print(ascii(cause["message"]) if "message" in cause else "", end="", file=sys.stderr)
        sys.stdout.flush()
        os._exit(cause.get("code", 128 + cause.get("signal", 0) if "signal" in cause else codes.get(cause["kind"], 0)))
