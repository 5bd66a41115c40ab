-- Add nominal times to a schedule, unless another node has added some meanwhile.
--
-- Kind      idempotent
-- Roles     node
-- Uses      guard rouse events plan
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
local wrong = guard(DUE, BODY, SYS, PLANS, BEATS, ROSTER, PROMISE)
if wrong then return wrong end

local beat = plan().read_beat(schedule)
if not beat or beat.print ~= fingerprint then return 0 end
local known = string.match(beat.ahead, '(%d+)$') or beat.next
if known ~= after then return 0 end
if beat.ahead == '' then
  beat.ahead = times
elseif times ~= '' then
  beat.ahead = beat.ahead .. ',' .. times
end
beat.gap = digits((tonumber(beat.gap) or 0) + left_out)
beat.final = final
plan().write_beat(schedule, beat)
-- The pending occurrence may have waited for these times.
plan().go_on(schedule, beat)
local earliest = first_due()
if earliest then rouse(earliest, earliest <= NOW and 1 or 0) end
return 1
