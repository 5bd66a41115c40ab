-- End a schedule. An occurrence in flight runs on.
--
-- Kind      once
-- Uses      types session events schedule
-- Commands  hexists
--
-- Arguments
--   schedule  its name
--
-- Returns   1; 0 if it does not exist
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, BODY, LEASE, TRIES, SYS, DEFINITIONS, TEMPLATES, STATES)
if wrong then return wrong end

local state = schedules().read_state(schedule)
local known = state ~= nil or redis.call('HEXISTS', STATES, schedule) == 1
if known then schedules().forget(schedule, state) end
remember(known and '1' or '0')
return known and '1' or '0'
