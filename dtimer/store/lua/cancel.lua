-- Cancel events: each does not start or, if it is running, is not retried.
--
-- Kind      once
-- Roles     producer
-- Uses      types session wake events schedule
-- Commands  hget hset zrem zscore
--
-- Arguments
--   ids...  the events
--
-- Returns   one letter for each: c if it will never start; f if it is in flight, and will not be
--           retried; n if there is no such event; s if nothing was done, because the next
--           occurrence is not known and the chain would end
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, TEMPLATES, STATES,
  ROSTER, EXPECTED)
if wrong then return wrong end

local letters, cancelled, of_schedule = {}, 0, false
-- True after a first write that Redis accepts when it is out of memory (parts/types.lua).
local writes = false
for i = ids, #ARGV do
  local id, letter = ARGV[i], 'n'
  local token, attempt, due, _, node, flags = parse_lease(redis.call('HGET', LEASE, id))
  if token then
    -- A lease that ended a moment ago counts as held, because its handler may still be running.
    if not writes then redis.call('ZREM', EXPECTED, '') end
    writes = true
    local lease = write_lease(token, attempt, due, 'c' .. flags, node)
    redis.call('HSET', LEASE, id, lease)
    letter = 'f'
  elseif redis.call('ZSCORE', DUE, id) then
    -- Few ids are those of occurrences, and creating the functions of schedules takes time.
    local schedule, nominal
    if string.find(id, '@%d+$') then schedule, nominal = schedules().parse_occurrence_id(id) end
    local state = schedule and schedules().read_state(schedule)
    local pending = state and state.next == nominal
    local after = pending and schedules().next_after(state, nominal)
    if pending and not after and schedules().has_more(state) then
      letter = 's'
    else
      if pending then schedules().try_writes(schedule, state) end
      remove(id)
      writes = true
      cancelled = cancelled + 1
      if pending then schedules().advance(schedule, state, after) end
      if schedule then schedules().ended(id) end
      of_schedule = of_schedule or schedule
      letter = 'c'
    end
  end
  letters[#letters + 1] = letter
end
count('cancelled', cancelled)
-- Another occurrence of a schedule may be due earlier now: the next one, if this one was
-- rescheduled to a much later time, or an occurrence that waited for this one to end. So make sure
-- that a node claims it in time.
local earliest = of_schedule and first_due()
if earliest then wake_next(earliest, earliest <= NOW and 1 or 0) end
if not writes then redis.call('ZREM', EXPECTED, '') end
local result = table.concat(letters)
remember(result)
return result
