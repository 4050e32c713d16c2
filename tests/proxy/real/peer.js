// A server and a client of Node's standard library, for tests/proxy/real.rs.
//   node peer.js serve             prints its port
//   node peer.js ask HOST PORT     prints `asked N`
const http = require('http');

const BODY = Buffer.from(Array.from({ length: 102400 }, (_, at) => at % 256));

function serve() {
  const server = http.createServer((request, answer) => {
    if (request.method === 'POST') {
      const parts = [];
      request.on('data', (part) => parts.push(part));
      request.on('end', () => {
        const body = Buffer.concat(parts);
        answer.writeHead(200, { 'Content-Length': body.length });
        answer.end(body);
      });
    } else if (request.url === '/chunked') {
      answer.write(BODY.subarray(0, 50000));
      setImmediate(() => answer.end(BODY.subarray(50000)));
    } else if (request.url === '/until-close') {
      answer.useChunkedEncodingByDefault = false;
      answer.writeHead(200, { Connection: 'close' });
      answer.end(BODY);
    } else {
      answer.writeHead(200, { 'Content-Length': BODY.length });
      answer.end(BODY);
    }
  });
  // Shorter than the proxy keeps a connection: the server is the one that closes it.
  server.keepAliveTimeout = 50;
  server.listen(0, '127.0.0.1', () => console.log(server.address().port));
}

function request(agent, host, port, method, path, parts) {
  return new Promise((done, fail) => {
    const headers = parts && parts.length === 1 ? { 'Content-Length': BODY.length } : {};
    const sent = http.request({ agent, host, port, method, path, headers }, (answer) => {
      const got = [];
      answer.on('data', (part) => got.push(part));
      answer.on('error', fail);
      answer.on('end', () => {
        const body = Buffer.concat(got);
        const wanted = method === 'HEAD' ? Buffer.alloc(0) : BODY;
        if (answer.statusCode !== 200 || !body.equals(wanted)) {
          fail(new Error(`${method} ${path}: ${answer.statusCode}, ${body.length} bytes`));
        }
        done();
      });
    });
    sent.on('error', fail);
    for (const part of parts || []) sent.write(part);
    sent.end();
  });
}

async function ask(host, port) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const steps = [
    ['GET', '/counted'],
    ['GET', '/chunked'],
    ['HEAD', '/counted'],
    ['POST', '/echo', [BODY]],
    ['POST', '/echo', [BODY.subarray(0, 1000), BODY.subarray(1000)]],
    ['GET', '/until-close'],
    ['GET', '/counted'],
  ];
  for (const step of steps) {
    await request(agent, host, port, ...step);
    // Longer than Node's server keeps an idle connection.
    await new Promise((next) => setTimeout(next, 60));
  }
  agent.destroy();
  console.log('asked', steps.length);
}

if (process.argv[2] === 'serve') serve();
else ask(process.argv[3], Number(process.argv[4])).catch((error) => { console.error(error); process.exit(1); });
