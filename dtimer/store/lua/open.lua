-- Make sure that the namespace is ours and of a schema that this version knows.
--
-- Uses      guard
--
-- ARGV[3]   the schema version
--
-- Returns   {now, version found}
local wrong = guard(unpack(KEYS))
if wrong then return wrong end
redis.call('HSETNX', SYS, 'v', ARGV[3])
return {digits(NOW), redis.call('HGET', SYS, 'v')}
