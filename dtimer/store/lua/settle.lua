-- Settle events outside a turn: a holder that wants to know at once.
--
-- Uses      guard memo rouse events plan settle
--
-- ARGV[3]   number of confirmed events
-- ARGV[4]   number of events settled in other ways
-- ARGV[5]   and on: those events, as parts/settle.lua reads them
--
-- Returns   one letter per event, in their order (parts/settle.lua)
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = guard(DUE, ROSTER, PROMISE)
if wrong then return wrong end

local before = first_due()
-- Redis allows this when it is out of memory, and with it what follows.
redis.call('ZREM', DUE, '')
local results
results, wrong = settle(5, tonumber(ARGV[3]), tonumber(ARGV[4]))
if wrong then return wrong end
remember(results)
local earliest = first_due()
if earliest and before and earliest < before then
  rouse(earliest, earliest <= NOW and 1 or 0)
end
return results
