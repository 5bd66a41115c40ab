-- Return the statistics of a namespace. Their cost does not grow with the number of events.
--
-- Kind      reads
-- Uses      wake
-- Commands  hget hlen hmget zcard zcount
--
-- Arguments
--   silent_after  number: how long a silent node is remembered, in µs
--
-- Returns   {now, pending, leased, due, earliest, dead, nodes, paused, totals, lateness}
--   pending   how many events wait or are in flight
--   leased    how many of them are in flight
--   due       how many of `pending` are due and not leased, or have a lease that has ended
--   earliest  when the next of `pending` is due, or its lease ends; -1 if there is none
--   dead      how many dead letters there are
--   totals    name and number of each total. That of a reason of dead letters is died:<reason>
--   lateness  the number in each bucket (dtimer/model/histogram.py)
local names = {
  'posted', 'started', 'confirmed', 'retried', 'snoozed', 'released', 'cancelled', 'superseded',
  'moved', 'cleared', 'lapsed', 'unknown', 'revived', 'coalesced', 'skipped',
}
for reason in string.gmatch(REASONS .. 'other', '%S+') do names[#names + 1] = died_total(reason) end
local fields = {}
for i, name in ipairs(names) do fields[i] = 'n:' .. name end
local counts = redis.call('HMGET', SYS, unpack(fields))
local totals = {}
for i, name in ipairs(names) do
  totals[2 * i - 1] = name
  totals[2 * i] = counts[i] or '0'
end
local buckets = {}
for i = 0, 80 do buckets[i + 1] = 'n:late:' .. i end
local lateness = redis.call('HMGET', SYS, unpack(buckets))
for i = 1, #buckets do lateness[i] = lateness[i] or '0' end
return {
  digits(NOW),
  redis.call('ZCARD', DUE),
  redis.call('HLEN', LEASE),
  redis.call('ZCOUNT', DUE, '-inf', digits(NOW)),
  digits(math.floor(first_due() or -1)),
  redis.call('ZCARD', DIED),
  redis.call('ZCOUNT', ALIVE, '(' .. digits(NOW - silent_after), '+inf'),
  redis.call('HGET', SYS, 'paused') or '0',
  totals,
  lateness,
}
