-- End a schedule. An occurrence in flight runs on.
--
-- Uses      guard session events plan
--
-- ARGV[3]   schedule
--
-- Returns   1; 0 if it does not exist
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, LEASE, TRIES, SYS, DEFS, PLANS, BEATS)
if wrong then return wrong end

-- `plan()` returns the functions of parts/plan.lua, and a `beat` is the state of a schedule. The
-- definition is in DEFS, the payload in PLANS and the state in BEATS.
local beat = plan().read_beat(ARGV[3])
local known = beat ~= nil or redis.call('HEXISTS', BEATS, ARGV[3]) == 1
if known then
  if beat and beat.next ~= '' then remove(plan().occurrence(ARGV[3], beat.next)) end
  redis.call('HDEL', DEFS, ARGV[3])
  redis.call('HDEL', PLANS, ARGV[3])
  redis.call('HDEL', BEATS, ARGV[3])
end
remember(known and '1' or '0')
return known and '1' or '0'
