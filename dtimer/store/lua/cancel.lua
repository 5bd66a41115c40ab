-- Cancel an event: it does not start or, if it is running, is not retried.
--
-- Kind      once
-- Roles     producer
-- Uses      guard session rouse events plan
-- Commands  hget hset zrem zscore
--
-- Arguments
--   id      the event
--
-- Returns   cancelled: it will never start; in_flight: it has started and will not be retried;
--           not_found; short: nothing was done, because the next occurrence is not known and
--           the chain would end
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = guard(DUE, BODY, LEASE, TRIES, DEAD, GRAVES, SYS, PLANS, BEATS,
  ROSTER, PROMISE)
if wrong then return wrong end

local result = 'not_found'
local lease = redis.call('HGET', LEASE, id)
local token, attempt, due, _, node, flags = parse_lease(lease)
if token then
  -- A lease that ended a moment ago counts as held, because its handler may still be running.
  -- This ZREM removes nothing. If Redis is out of memory, it allows a ZREM as the first write of a
  -- script, and then all later writes of that script.
  redis.call('ZREM', PROMISE, '')
  lease = write_lease(token, attempt, due, 'c' .. flags, node)
  redis.call('HSET', LEASE, id, lease)
  result = 'in_flight'
elseif redis.call('ZSCORE', DUE, id) then
  local schedule, nominal = plan().named_by(id)
  local beat = schedule and plan().read_beat(schedule)
  local pending = beat and beat.next == nominal
  local after = pending and plan().following(beat, nominal)
  if pending then
    if not after and plan().open_ended(beat) then return 'short' end
    plan().sure_to_go_on(schedule, beat)
  end
  remove(id)
  count('cancelled', 1)
  if pending then plan().advance(schedule, beat, after) end
  plan().ended(id)
  -- Another occurrence of this schedule may be due earlier now: the next one, if this one was
  -- rescheduled to a much later time, or an occurrence that waited for this one to end. So make
  -- sure that a node claims it in time.
  local earliest = schedule and first_due()
  if earliest then rouse(earliest, earliest <= NOW and 1 or 0) end
  result = 'cancelled'
else
  -- As above: it lets `remember` write when Redis is out of memory.
  redis.call('ZREM', PROMISE, '')
end
remember(result)
return result
