-- Raise the version of the stored forms to the latest that this dtimer knows, if no node of an older
-- dtimer was heard of for some time. Clients of an older dtimer are refused from then on.
--
-- Kind      idempotent
-- Uses      types
-- Commands  hget hmget hset zrangebyscore
--
-- Arguments
--   silent_after  number: how long no older node may have been heard of, in µs
--
-- Returns   {version, older}
--   version   that of the namespace before this call; '' if the namespace does not exist
--   older     how many older nodes there are, or 1 if the last one left a moment ago. If it is not 0,
--             nothing was changed
local wrong = check_types(SYS, MEMO_A, NODES, ALIVE)
if wrong then return wrong end
local version = redis.call('HGET', SYS, 'v')
wrong = check_version(version)
if wrong then return wrong end
if not version or version == SCHEMA then return {version or '', '0'} end

local older = 0
local alive = redis.call('ZRANGEBYSCORE', ALIVE, '(' .. digits(NOW - silent_after), '+inf',
  'LIMIT', 0, 1000)
local registrations = #alive > 0 and redis.call('HMGET', NODES, unpack(alive)) or {}
for _, registration in ipairs(registrations) do
  local known = string.match(registration or '', '^%d+,(%d+)|')
  if registration and tonumber(known or 0) < tonumber(SCHEMA) then older = older + 1 end
end
local left = tonumber(redis.call('HGET', SYS, 'heard:' .. version) or 0) or 0
if older == 0 and NOW - left < silent_after then older = 1 end
if older == 0 then
  redis.call('HSET', SYS, 'v', SCHEMA)
  redis.call('HSET', MEMO_A, 'v', SCHEMA)
end
return {version, digits(older)}
