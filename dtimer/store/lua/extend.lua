-- Renew leases: the heartbeat of running handlers, or one event at its holder's request.
-- Asked again it does the same again, so it needs no memo.
--
-- Uses      guard
--
-- ARGV[3]   lease length in µs, from now; with a '+' before it a lease that lasts longer is left
--           as it is: a holder's wish never shortens its lease, a heartbeat does, after the
--           server's clock was put back
-- ARGV[4]   and on: id and token of each event in turn
--
-- Returns   a string of one letter each: 1 renewed, 0 not the holder any more
local wrong = guard(DUE, LEASE)
if wrong then return wrong end

-- Redis allows this when it is out of memory, and with it what follows.
redis.call('ZREM', DUE, '')
local least = string.sub(ARGV[3], 1, 1) == '+'
local asked = NOW + tonumber(string.match(ARGV[3], '%d+'))
local ids = {}
for i = 4, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local leases = redis.call('HMGET', LEASE, unpack(ids))
local letters = {}
for i, id in ipairs(ids) do
  if leases[i] and string.match(leases[i], '^(%d+),') == ARGV[2 * i + 3] then
    local ends = asked
    if least then
      local left = tonumber(redis.call('ZSCORE', DUE, id) or '0')
      if left > ends and left < 9e15 then ends = left end
    end
    redis.call('ZADD', DUE, 'XX', digits(ends), id)
    letters[i] = '1'
  else
    letters[i] = '0'
  end
end
return table.concat(letters)
