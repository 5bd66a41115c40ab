-- Return the joined nodes that have claimed within a given time, at most 1000 of them.
--
-- Kind      reads
-- Commands  hget zrangebyscore zscore
--
-- Arguments
--   silent_after  number: how long a silent node is remembered, in µs
--
-- Returns   {incarnation, registration, silence, on_roster, ...}, for each node
--   registration  '<joined µs>|<JSON>'
--   silence       µs since its last claim
--   on_roster     1 if it is on the roster, else 0
local rows = {}
local alive = redis.call('ZRANGEBYSCORE', ALIVE, '(' .. digits(NOW - silent_after), '+inf',
  'WITHSCORES', 'LIMIT', 0, 1000)
for i = 1, #alive, 2 do
  local registration = redis.call('HGET', NODES, alive[i])
  if registration then
    local on_roster = redis.call('ZSCORE', ROSTER, alive[i]) and '1' or '0'
    for _, v in ipairs({alive[i], registration, digits(NOW - tonumber(alive[i + 1])), on_roster}) do
      rows[#rows + 1] = v
    end
  end
end
return rows
