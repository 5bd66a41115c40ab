// Drive the original, dtimer on npm. It needs a promisified redis module.
'use strict';

const Promise = require('bluebird');
const redis = Promise.promisifyAll(require('redis'));
const { DTimer } = require('dtimer');
const { main, record, delayTo } = require('./driving.js');

main(async ({ url, role, batch, options }) => {
  const { hostname, port } = new URL(url);
  const connect = () => redis.createClient(Number(port), hostname);
  // With maxRetries, an event is leased and a confirm deletes it. Without, its delivery does.
  const leased = options.maxRetries > 0;
  const settings = options.maxEvents ? { maxEvents: batch > 1 ? batch : options.maxEvents } : {};
  const timer = role === 'consume'
    ? new DTimer(`node-${process.pid}`, connect(), connect(), settings)
    : new DTimer('poster', connect(), null, settings);
  const post = (body, due) => timer.post(
    leased ? { ...body, maxRetries: options.maxRetries } : body, delayTo(due),
  );
  return {
    post,
    postInBulk: async (items) => {
      for (let start = 0; start < items.length; start += 500) {
        await Promise.all(items.slice(start, start + 500).map(([body, due]) => post(body, due)));
      }
    },
    consume: async () => {
      timer.on('event', (ev) => {
        record(ev);
        if (leased) timer.confirm(ev.id);
      });
      timer.on('error', (error) => process.stderr.write(`${error.stack}\n`));
      await timer.join();
    },
  };
});
