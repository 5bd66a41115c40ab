-- Create one more occurrence of a schedule, due now, in addition to its regular ones.
--
-- Kind      once
-- Uses      guard session rouse events plan
-- Commands  hexists zadd
--
-- Arguments
--   schedule  its name
--
-- Returns   the id of the occurrence; '' if it does not exist
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, BODY, LEASE, TRIES, DEAD, GRAVES, SYS, PLANS, BEATS, ROSTER, PROMISE)
if wrong then return wrong end

local beat = plan().read_beat(schedule)
local id = ''
if beat then
  local now = NOW
  while digits(now) == beat.next
    or redis.call('HEXISTS', BODY, plan().occurrence(schedule, digits(now))) == 1
    or redis.call('HEXISTS', DEAD, plan().occurrence(schedule, digits(now))) == 1 do
    now = now + 1
  end
  now = digits(now)
  local extra = {next = now, jitter = '', every = '0', left = '', paused = ''}
  plan().put(schedule, extra)
  count('posted', 1)
  id = plan().occurrence(schedule, now)
  redis.call('ZADD', DUE, digits(NOW), id)
  rouse(first_due(), 1)
end
remember(id)
return id
