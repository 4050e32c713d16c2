// A client of Node's http2, for tests/judges/clients.py: one session.
//   node client.js URL AUTHORITY REQUESTS AT_ONCE   prints `ok N`, and a line for each request that failed
const fs = require('fs');
const http2 = require('http2');

const BODY = Buffer.from('0123456789abcdef'.repeat(64));
const [url, authority, requests, atOnce] = process.argv.slice(2);
const session = http2.connect(url, { ca: fs.readFileSync(authority) });
session.on('goaway', (code) => console.log(`GOAWAY ${code}`));
session.on('error', (error) => console.log(`session: ${error.message}`));

function once(posts) {
  return new Promise((done, fail) => {
    const stream = session.request({ ':method': posts ? 'POST' : 'GET', ':path': '/' });
    const got = [];
    let status;
    stream.on('response', (head) => { status = head[':status']; });
    stream.on('data', (part) => got.push(part));
    stream.on('error', fail);
    stream.on('close', () => {
      if (status === 200 && Buffer.concat(got).equals(BODY)) done();
      else fail(new Error(`status ${status}, ${Buffer.concat(got).length} bytes`));
    });
    stream.end(posts ? BODY : undefined);
  });
}

let next = 0;
let ok = 0;

async function asker() {
  while (next < Number(requests)) {
    next += 1;
    try {
      await once(next % 2 === 0);
      ok += 1;
    } catch (error) {
      console.log(error.message);
    }
  }
}

Promise.all(Array.from({ length: Number(atOnce) }, asker)).then(() => {
  console.log('ok', ok);
  session.close();
});
