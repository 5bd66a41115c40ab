-- Check the types of all keys of a namespace, create it if that is requested, and return its state.
--
-- A caller that only reads does not create it, so a mistyped name leaves no key behind. A namespace
-- that is created gets a random mark. A different mark tells a client that the namespace was lost
-- and created again.
--
-- Kind      reads
-- Roles     node producer
-- Uses      types
-- Commands  hmget hset
--
-- Arguments
--   schema  the version of the stored formats, for a new namespace
--   mark    the random mark for the namespace if it must be created; '' to create none
--
-- Returns   {now, version, mark, token, posted, removed}
--   version '' if the namespace does not exist and was not created
--   mark    the random mark that it was created with
--   token   the last one issued, 0 for none
--   posted  how many events were ever posted
--   removed how many nodes were ever removed because they were silent
local wrong = check_types(unpack(KEYS))
if wrong then return wrong end
local version, stored_mark, token, posted, removed = unpack(
  redis.call('HMGET', SYS, 'v', 'born', 'token', 'n:posted', 'n:struck'))
if not version and mark ~= '' then
  -- Write in this case only, because a full server or a replica refuses writes.
  stored_mark = mark
  redis.call('HSET', SYS, 'v', schema, 'born', mark)
  version = schema
end
return {digits(NOW), version or '', stored_mark or '', token or '0', posted or '0', removed or '0'}
