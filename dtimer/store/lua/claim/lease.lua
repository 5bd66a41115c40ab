-- Write the new leases.
--
-- Commands  hdel hset zadd
-- Reads     claimed held ids lapsed lateness scores token tried trouble unclaimed
-- Sets      unclaimed

if claimed > 0 then
  redis.call('ZADD', DUE, unpack(scores))
  redis.call('HSET', LEASE, unpack(held))
  if #tried > 0 then redis.call('HDEL', TRIES, unpack(tried)) end
  redis.call('HSET', SYS, 'token', digits(token - 1))
  count('started', claimed)
  for bucket, n in pairs(lateness) do count('late:' .. bucket, n) end
end
if lapsed > 0 and not trouble then count('lapsed', lapsed) end
unclaimed = unclaimed and unclaimed - #ids
