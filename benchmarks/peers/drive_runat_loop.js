// Replace runat, which is no longer in the registry, by a reimplementation of its method. Payloads
// are members of a sorted set. A loop fetches and removes all due members every `interval` ms.
// Delivery is at most once: there are no leases and no confirms.
'use strict';

const redis = require('redis');
const { main, record, nowMs } = require('./driving.js');

const KEY = 'runat';

main(async ({ url, options }) => {
  const client = redis.createClient(url);
  const add = (commands, [body, due]) => commands.zadd(KEY, due / 1000, JSON.stringify(body));
  const run = (commands) => new Promise((resolve, reject) => {
    commands.exec((error, replies) => (error ? reject(error) : resolve(replies)));
  });
  const take = async () => {
    const now = nowMs();
    const [due] = await run(
      client.multi().zrangebyscore(KEY, '-inf', now).zremrangebyscore(KEY, '-inf', now),
    );
    if (due.length) record(...due.map((text) => JSON.parse(text)));
    setTimeout(take, options.interval);
  };
  return {
    post: (...item) => new Promise((resolve, reject) => {
      const [body, due] = item;
      const told = (error) => (error ? reject(error) : resolve());
      client.zadd(KEY, due / 1000, JSON.stringify(body), told);
    }),
    postInBulk: async (items) => {
      for (let start = 0; start < items.length; start += 500) {
        const commands = client.batch();
        for (const item of items.slice(start, start + 500)) add(commands, item);
        await run(commands);
      }
    },
    consume: async () => { take(); },
  };
});
