-- Delete all events, dead letters and schedules, with the owners of schedules. The schema, the
-- tokens, the totals, the nodes, the history and a pause stay.
--
-- Kind      once
-- Uses      types session events
-- Commands  hdel hkeys hlen unlink zcard
--
-- Returns   '<events>;<dead>;<schedules>', how many of each were deleted
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, DEFINITIONS, TEMPLATES,
  STATES)
if wrong then return wrong end

local cleared = redis.call('ZCARD', DUE)
local result = cleared .. ';' .. redis.call('HLEN', DEAD) .. ';'
  .. redis.call('HLEN', STATES)
-- Deleted keys free their memory on another thread of the server, so a large namespace does not
-- block it. No other client finds only some of these keys deleted.
redis.call('UNLINK', DUE, BODY, LEASE, TRIES, DEAD, DIED, DEFINITIONS, TEMPLATES, STATES)
-- The records of the owners of schedules (parts/owners.lua), or an old version of an owner could not
-- declare its schedules in the empty namespace.
for _, field in ipairs(redis.call('HKEYS', SYS)) do
  if string.sub(field, 1, 6) == 'owner:' then redis.call('HDEL', SYS, field) end
end
count('cleared', cleared)
remember(result)
return result
