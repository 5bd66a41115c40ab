-- Replace the payload of an event that waits. Its due time, its attempts, its expiry, its
-- max_retries and its flags stay. An event in flight has already started, or is about to, and a dead
-- letter is not an event, so neither is changed.
--
-- Kind      once
-- Roles     producer
-- Uses      types session
-- Commands  hget hset zrem zscore
--
-- Arguments
--   id       the event
--   payload  the new payload, with the bytes of its codec
--
-- Returns   1 if it was replaced, else 0
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = check_types(DUE, BODY, LEASE)
if wrong then return wrong end

local waits = redis.call('ZSCORE', DUE, id) and not parse_lease(redis.call('HGET', LEASE, id))
local body = waits and redis.call('HGET', BODY, id)
local _, max_retries = parse_body(body)
local result = '0'
-- A body that dtimer has not written has no payload that could be replaced.
if max_retries then
  redis.call('HSET', BODY, id, with_payload(body, payload))
  result = '1'
else
  -- Let Redis accept the later writes if it is out of memory (parts/types.lua).
  redis.call('ZREM', DUE, '')
end
remember(result)
return result
