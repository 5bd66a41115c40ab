-- Make sure that the namespace is ours and of a schema that this version knows.
--
-- A caller that only reads makes none, so that a mistyped name leaves no key behind.
--
-- Uses      guard
--
-- ARGV[3]   the schema version
-- ARGV[4]   a name for this making of the namespace, should it be made now; '' makes none
--
-- Returns   {now, version found, that name, token, posted, struck}
--   version '' when there is no namespace, and none was made
--   token   the last that was given out, 0 for none
--   posted  how many events were ever posted
--   struck  how many nodes were ever struck off for their silence
local wrong = guard(unpack(KEYS))
if wrong then return wrong end
local version, born, token, posted, struck = unpack(
  redis.call('HMGET', SYS, 'v', 'born', 'token', 'n:posted', 'n:struck'))
if not version and ARGV[4] ~= '' then
  -- Only then: a full server, or a replica, takes no writes.
  born = ARGV[4]
  redis.call('HSET', SYS, 'v', ARGV[3], 'born', born)
  version = ARGV[3]
end
return {digits(NOW), version or '', born or '', token or '0', posted or '0', struck or '0'}
