-- Renew leases: the heartbeat of running handlers, or one event at its holder's request.
-- Asked again it does the same again, so it needs no memo.
--
-- Uses      guard
--
-- ARGV[3]   lease length in µs, from now
-- ARGV[4]   and on: id and token of each event in turn
--
-- Returns   a string of one letter each: 1 renewed, 0 not the holder any more
local wrong = guard(DUE, LEASE)
if wrong then return wrong end

-- Redis allows this when it is out of memory, and with it what follows.
redis.call('ZREM', DUE, '')
local ids = {}
for i = 4, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local leases = redis.call('HMGET', LEASE, unpack(ids))
local letters = {}
for i, id in ipairs(ids) do
  if leases[i] and string.match(leases[i], '^(%d+),') == ARGV[2 * i + 3] then
    redis.call('ZADD', DUE, 'XX', digits(NOW + tonumber(ARGV[3])), id)
    letters[i] = '1'
  else
    letters[i] = '0'
  end
end
return table.concat(letters)
