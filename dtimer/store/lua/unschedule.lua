-- End a schedule. An occurrence in flight runs on.
--
-- Kind      once
-- Uses      guard session events plan
-- Commands  hdel hexists
--
-- Arguments
--   schedule  its name
--
-- Returns   1; 0 if it does not exist
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, LEASE, TRIES, SYS, DEFS, PLANS, BEATS)
if wrong then return wrong end

-- `plan()` returns the functions of parts/plan.lua, and a `beat` is the state of a schedule. The
-- definition is in DEFS, the payload in PLANS and the state in BEATS.
local beat = plan().read_beat(schedule)
local known = beat ~= nil or redis.call('HEXISTS', BEATS, schedule) == 1
if known then
  if beat and beat.next ~= '' then remove(plan().occurrence(schedule, beat.next)) end
  redis.call('HDEL', DEFS, schedule)
  redis.call('HDEL', PLANS, schedule)
  redis.call('HDEL', BEATS, schedule)
end
remember(known and '1' or '0')
return known and '1' or '0'
