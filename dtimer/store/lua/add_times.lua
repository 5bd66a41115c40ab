-- Add nominal times to a schedule, unless another node has added some meanwhile.
--
-- Uses      guard rouse events plan
--
-- ARGV[3]   schedule
-- ARGV[4]   fingerprint of the definition from which the times were computed
-- ARGV[5]   the last nominal time that the caller knew; the added times follow it
-- ARGV[6]   nominal times, joined by ','
-- ARGV[7]   how many past times before these were left out
-- ARGV[8]   1 if no other times will follow these, else ''
--
-- Returns   1 if they were added, else 0
local wrong = guard(DUE, BODY, SYS, PLANS, BEATS, ROSTER, PROMISE)
if wrong then return wrong end

local schedule = ARGV[3]
local beat = plan().read_beat(schedule)
if not beat or beat.print ~= ARGV[4] then return 0 end
local known = string.match(beat.ahead, '(%d+)$') or beat.next
if known ~= ARGV[5] then return 0 end
if beat.ahead == '' then
  beat.ahead = ARGV[6]
elseif ARGV[6] ~= '' then
  beat.ahead = beat.ahead .. ',' .. ARGV[6]
end
beat.gap = digits((tonumber(beat.gap) or 0) + tonumber(ARGV[7]))
beat.final = ARGV[8]
plan().write_beat(schedule, beat)
-- The pending occurrence may have waited for these times.
plan().go_on(schedule, beat)
local earliest = first_due()
if earliest then rouse(earliest, earliest <= NOW and 1 or 0) end
return 1
