-- Check the types of all keys of a namespace, create it if that is requested, and return its state.
--
-- A caller that only reads does not create it, so a mistyped name leaves no key behind. A namespace
-- that is created gets a random mark. A different mark tells a client that the namespace was lost and
-- created again.
--
-- Uses      guard
--
-- ARGV[3]   the schema version
-- ARGV[4]   the random mark for the namespace if it must be created; '' to create none
--
-- Returns   {now, version, born, token, posted, removed}
--   version '' if the namespace does not exist and was not created
--   born    the random mark that it was created with
--   token   the last one issued, 0 for none
--   posted  how many events were ever posted
--   removed how many nodes were ever removed because they were silent
local wrong = guard(unpack(KEYS))
if wrong then return wrong end
local version, born, token, posted, struck = unpack(
  redis.call('HMGET', SYS, 'v', 'born', 'token', 'n:posted', 'n:struck'))
if not version and ARGV[4] ~= '' then
  -- Write in this case only, because a full server or a replica refuses writes.
  born = ARGV[4]
  redis.call('HSET', SYS, 'v', ARGV[3], 'born', born)
  version = ARGV[3]
end
return {digits(NOW), version or '', born or '', token or '0', posted or '0', struck or '0'}
