"""The cheapest scripts that can post, claim and confirm: the floor of everything in Redis."""

#: ARGV: triples of due time, id and body.
POST = """
for i = 1, #ARGV, 3 do
  redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[2], ARGV[i + 1], ARGV[i + 2])
end
"""

#: The same for many events: ARGV are triples, and each command is called once.
POST_MANY = """
local scores, bodies, n = {}, {}, 0
for i = 1, #ARGV, 3 do
  scores[n + 1], scores[n + 2] = ARGV[i], ARGV[i + 1]
  bodies[n + 1], bodies[n + 2] = ARGV[i + 1], ARGV[i + 2]
  n = n + 2
end
redis.call('ZADD', KEYS[1], unpack(scores))
redis.call('HSET', KEYS[2], unpack(bodies))
"""

#: ARGV: the limit, the lease in µs, the ids to confirm. Returns the µs to wait, ids, bodies.
CLAIM = """
if #ARGV > 2 then
  redis.call('ZREM', KEYS[1], unpack(ARGV, 3))
  redis.call('HDEL', KEYS[2], unpack(ARGV, 3))
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
if #ids == 0 then
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
  return {first and first - now or -1, {}, {}}
end
local leases, lease = {}, string.format('%.0f', now + ARGV[2])
for i, id in ipairs(ids) do
  leases[2 * i - 1], leases[2 * i] = lease, id
end
redis.call('ZADD', KEYS[1], unpack(leases))
return {0, ids, redis.call('HMGET', KEYS[2], unpack(ids))}
"""
