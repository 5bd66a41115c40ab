// The base of all drivers on Node. Its twin driving.py describes the protocol.
'use strict';

const fs = require('fs');
const readline = require('readline');
const { performance } = require('perf_hooks');

const LOG = fs.openSync(process.env.BENCHMARK_LOG, 'a', 0o600);
const UNKNOWN = -(1n << 62n);
const CHUNK = 20000;
const TICK = 0.05; // seconds, between the portions of a stream

// Date.now() counts whole milliseconds, and performance.now() may have drifted from the wall clock.
// So wait for a millisecond to begin, and take the fraction from there.
function calibrated() {
  const before = Date.now();
  let wall = before;
  while (wall === before) wall = Date.now();
  return wall - performance.now();
}
const ORIGIN = calibrated();
const nowMs = () => ORIGIN + performance.now();

// Handle one event, or several at once.
function record(...bodies) {
  const all = Buffer.allocUnsafe(32 * bodies.length);
  bodies.forEach((body, k) => {
    all.writeBigInt64LE(BigInt(body.i), 32 * k);
    all.writeBigInt64LE(BigInt(Math.round(nowMs() * 1000)), 32 * k + 8);
    all.writeBigInt64LE(BigInt(body.due), 32 * k + 16);
    all.writeBigInt64LE(UNKNOWN, 32 * k + 24);
  });
  fs.writeSync(LOG, all);
}

function payload(i, due, size) {
  const bare = JSON.stringify({ i, due, k: '' }).length;
  return { i, due, k: 'x'.repeat(Math.max(0, size - bare)) };
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Return the whole milliseconds until a moment in µs, as a caller would pass them.
const delayTo = (due) => Math.max(0, Math.ceil(due / 1000 - nowMs()));

async function postItems(peer, way, items) {
  const began = performance.now();
  if (way === 'bulk' && peer.postInBulk) await peer.postInBulk(items);
  else for (const [body, due] of items) await peer.post(body, due);
  return (performance.now() - began) / 1000;
}

const commands = {
  async post(peer, { count, first, due, size, way }) {
    let seconds = 0;
    for (let at = first; at < first + count; at += CHUNK) {
      const items = [];
      for (let i = at; i < Math.min(first + count, at + CHUNK); i += 1) {
        items.push([payload(i, due, size), due]);
      }
      seconds += await postItems(peer, way, items);
    }
    return { posted: count, seconds };
  },

  async post_at(peer, { dues, size, way }) {
    const items = dues.map((due, i) => [payload(i, due, size), due]);
    return { posted: items.length, seconds: await postItems(peer, way, items) };
  },

  async stream(peer, { rate, seconds, due, size, way }) {
    const began = performance.now();
    const gone = () => (performance.now() - began) / 1000;
    let posted = 0;
    while (gone() < seconds) {
      const wanted = Math.floor((gone() + TICK) * rate) - posted;
      const items = [];
      for (let k = 0; k < Math.min(wanted, 500); k += 1) {
        items.push([payload(posted + k, due, size), due]);
      }
      await postItems(peer, way, items);
      posted += items.length;
      await sleep(Math.max(0, 1000 * (posted / rate - gone())));
    }
    return { posted, seconds: gone() };
  },
};

// Run a driver: make(settings) returns a peer with consume(), post() and perhaps postInBulk().
async function main(make) {
  const say = (what) => fs.writeSync(1, `${JSON.stringify(what)}\n`);
  let peer = null;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const said = JSON.parse(line);
    if (peer === null) {
      peer = await make(said);
      if (said.role === 'consume') await peer.consume();
      say({ ready: true });
    } else {
      say(await commands[said.do](peer, said));
    }
  }
  process.exit(0);
}

module.exports = { main, record, delayTo, nowMs };
