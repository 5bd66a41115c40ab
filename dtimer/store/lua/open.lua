-- Make sure that the namespace is ours and of a schema that this version knows.
--
-- Uses      guard
--
-- ARGV[3]   the schema version
--
-- Returns   {now, version found}
local wrong = guard(unpack(KEYS))
if wrong then return wrong end
local version = redis.call('HGET', SYS, 'v')
if not version then
  -- Only then: a full server, or a replica, takes no writes.
  redis.call('HSET', SYS, 'v', ARGV[3])
  version = ARGV[3]
end
return {digits(NOW), version}
