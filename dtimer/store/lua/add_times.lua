-- Add nominal times to a schedule, unless another node has added some meanwhile.
--
-- Kind      idempotent
-- Roles     node
-- Uses      types wake events schedule
-- Commands  hget
--
-- Arguments
--   schedule     its name
--   fingerprint  of the definition from which the times were computed
--   after        the last nominal time that the caller knew; the added times follow it
--   times        nominal times, joined by ','
--   left_out     number: how many past times before these were left out
--   final        1 if no other times will follow these, else ''
--
-- Returns   1 if they were added, else 0
local wrong = check_types(DUE, BODY, SYS, TEMPLATES, STATES, ROSTER, EXPECTED)
  or check_version(redis.call('HGET', SYS, 'v'))
if wrong then return wrong end

local state = schedules().read_state(schedule)
if not state or state.print ~= fingerprint then return 0 end
local known = string.match(state.ahead, '(%d+)$') or state.next
if known ~= after then return 0 end
if state.ahead == '' then
  state.ahead = times
elseif times ~= '' then
  state.ahead = state.ahead .. ',' .. times
end
state.gap = digits((tonumber(state.gap) or 0) + left_out)
state.final = final
-- The pending occurrence may have waited for these times.
schedules().let_start(schedule, state)
schedules().write_state(schedule, state)
local earliest = first_due()
if earliest then wake_next(earliest, earliest <= NOW and 1 or 0) end
return 1
