// Drive BullMQ: delayed jobs in one queue, and one worker process.
'use strict';

const { Queue, Worker } = require('bullmq');
const { main, record, delayTo } = require('./driving.js');

const NAME = 'bench';

main(async ({ url, options }) => {
  const { hostname: host, port } = new URL(url);
  const connection = { host, port: Number(port) };
  const kept = options.removeOnComplete ? { removeOnComplete: true } : {};
  const job = ([body, due]) => ({ name: 'e', data: body, opts: { delay: delayTo(due), ...kept } });
  let queue = null;
  const opened = () => { queue ??= new Queue(NAME, { connection }); return queue; };
  return {
    post: (body, due) => opened().add('e', body, job([body, due]).opts),
    postInBulk: async (items) => {
      for (let start = 0; start < items.length; start += 500) {
        await opened().addBulk(items.slice(start, start + 500).map(job));
      }
    },
    consume: async () => {
      const worker = new Worker(NAME, async ({ data }) => record(data), {
        connection: { ...connection, maxRetriesPerRequest: null },
        concurrency: options.concurrency ?? 1,
      });
      worker.on('error', (error) => process.stderr.write(`${error.stack}\n`));
      await worker.waitUntilReady();
    },
  };
});
