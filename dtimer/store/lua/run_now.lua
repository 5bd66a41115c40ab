-- Hand out one more occurrence of a schedule, besides those it makes by itself.
--
-- Uses      guard memo rouse events plan
--
-- ARGV[3]   schedule
--
-- Returns   the id of the occurrence, or '' when there is no such schedule
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, SYS, PLANS, BEATS, ROSTER, PROMISE)
if wrong then return wrong end

local beat = read_beat(ARGV[3])
local id = ''
if beat then
  local now = beat.next == digits(NOW) and digits(NOW + 1) or digits(NOW)
  local extra = {next = now, jitter = '', every = '0', left = '', paused = ''}
  put(ARGV[3], extra)
  count('posted', 1)
  id = occurrence(ARGV[3], now)
  rouse(first_due(), 1)
end
remember(id)
return id
