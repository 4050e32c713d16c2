// Does what main.go does, with Node's http server (llhttp).
'use strict';
const http = require('node:http');
const { Duplex } = require('node:stream');
const readline = require('node:readline');

class Connection extends Duplex {
  constructor(bytes) {
    super({ allowHalfOpen: true });
    this.bytes = bytes;
  }
  _read() {
    if (this.bytes) {
      this.push(this.bytes);
      this.bytes = null;
      this.push(null);
    }
  }
  _write(chunk, encoding, done) {
    this.refused ||= /^HTTP\/1\.1 [45]/.test(chunk.toString('latin1'));
    done();
  }
  setTimeout() { return this; }
  setNoDelay() { return this; }
  setKeepAlive() { return this; }
  ref() { return this; }
  unref() { return this; }
}

function read(stream) {
  return new Promise((resolve) => {
    const seen = [];
    let refused = '';
    let open = 0;
    const server = http.createServer({ keepAliveTimeout: 0 });
    const take = (request, response) => {
      open += 1;
      const parts = [];
      const at = seen.push(null) - 1;
      request.on('data', (part) => parts.push(part));
      request.on('end', () => {
        const hex = (text) => Buffer.from(text, 'latin1').toString('hex');
        const host = hex(request.headers.host ?? '');
        seen[at] = `${hex(request.method)},${hex(request.url)},${host},${Buffer.concat(parts).toString('hex')}`;
        open -= 1;
        response.end();
      });
      request.on('error', () => { open -= 1; });
    };
    server.on('request', take);
    server.on('checkContinue', take);
    server.on('checkExpectation', take);
    server.on('clientError', (error, socket) => {
      refused = '!';
      setImmediate(() => socket.destroy());
    });
    const connection = new Connection(stream);
    connection.on('error', () => {});
    connection.on('close', () => {
      server.close();
      resolve(seen.filter((it) => it !== null).join(';') + (connection.refused ? '!' : refused));
    });
    server.emit('connection', connection);
  });
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(await read(Buffer.from(line, 'hex')));
  }
})();
