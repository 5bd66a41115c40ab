-- Renew leases: all unsettled ones of a node as its heartbeat, or one at its handler's request.
-- A second call has the same effect, so the result is not remembered.
--
-- Kind      idempotent
-- Roles     node
-- Uses      types
-- Commands  hget hmget zadd zrem zscore
--
-- Arguments
--   lease      its new length in µs, from now. With a leading '+', a lease that lasts longer is
--              not changed. A handler's request has the '+', so it never shortens its lease. A
--              heartbeat may shorten one, after the server's clock was set back
--   leases...  id and token of each event
--
-- Returns   one character for each: 1 renewed, c renewed but cancelled meanwhile, 0 not held under
--           this token any more
local wrong = check_types(DUE, LEASE)
  or check_version(redis.call('HGET', SYS, 'v'))
if wrong then return wrong end

-- Let Redis accept the later writes if it is out of memory (parts/types.lua).
redis.call('ZREM', DUE, '')
local least = string.sub(lease, 1, 1) == '+'
local asked = NOW + tonumber(string.match(lease, '%d+'))
local ids = {}
for i = leases, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local held = redis.call('HMGET', LEASE, unpack(ids))
local letters = {}
for i, id in ipairs(ids) do
  local token = ARGV[leases + 2 * i - 1]
  local held_token, flags
  if held[i] then held_token, flags = string.match(held[i], TOKEN_AND_FLAGS) end
  if held_token == token then
    local ends = asked
    if least then
      local left = tonumber(redis.call('ZSCORE', DUE, id) or '0')
      if left > ends and left < 9e15 then ends = left end
    end
    redis.call('ZADD', DUE, 'XX', digits(ends), id)
    letters[i] = (flags == '' or flags == 's') and '1' or 'c'
  else
    letters[i] = '0'
  end
end
return table.concat(letters)
