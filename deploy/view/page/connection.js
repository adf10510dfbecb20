// A socket that answers each JSON message with one binary message: uint32 length, JSON header, pictures end to end.

const MOST_UNANSWERED = 2;

export class Connection {
  constructor(path, onEnd) {
    this.path = path;
    this.onEnd = onEnd;
    this.waiting = [];   // sent, and not answered
    this.queue = [];     // not sent yet
    this.socket = null;
  }

  get busy() {
    return this.waiting.length + this.queue.length >= MOST_UNANSWERED;
  }

  // Resolves with {header, pictures: [Blob]}; rejects with the server's sentence.
  ask(message) {
    return new Promise((resolve, reject) => {
      this.queue.push({ message, resolve, reject });
      this.open();
      this.send();
    });
  }

  open() {
    if (this.socket) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}${this.path}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.send();
    socket.onmessage = (event) => this.receive(event.data);
    socket.onclose = () => this.end();
    this.socket = socket;
  }

  send() {
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN) return;
    while (this.queue.length && this.waiting.length < MOST_UNANSWERED) {
      const next = this.queue.shift();
      this.waiting.push(next);
      this.socket.send(JSON.stringify(next.message));
    }
  }

  receive(data) {
    const size = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
    const pictures = [];
    let at = 4 + size;
    for (const image of header.images ?? []) {
      pictures.push(new Blob([new Uint8Array(data, at, image.bytes)]));
      at += image.bytes;
    }
    const first = this.waiting.shift();
    this.send();
    if (!first) { this.last = header.text; return; }   // said before the socket is closed
    if (header.kind === "error") { this.last = header.text; first.reject(new Error(header.text)); }
    else first.resolve({ header, pictures });
  }

  end() {
    this.socket = null;
    const reason = this.last ?? "the server closed the connection";
    for (const one of [...this.waiting, ...this.queue]) one.reject(new Error(reason));
    this.waiting = [];
    this.queue = [];
    this.last = undefined;
    this.onEnd?.(reason);
  }
}
