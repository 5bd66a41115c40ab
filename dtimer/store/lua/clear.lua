-- Delete all events, dead letters and schedules. The schema, the tokens, the totals, the nodes and
-- a pause stay.
--
-- Kind      once
-- Uses      types session events
-- Commands  hlen unlink zcard
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
count('cleared', cleared)
remember(result)
return result
