-- Settle events immediately, outside a claim, for a handler that waits for the outcome.
--
-- Kind      once
-- Roles     node
-- Uses      types session wake events schedule settle
-- Commands  zrem
--
-- Arguments
--   confirms        number: how many events are confirmed
--   others          number: how many events are settled in other ways
--   settlements...  these events, in the format of parts/settle.lua
--
-- Returns   one character per event, in order (parts/settle.lua)
local done, stale = recall()
if stale then return stale end
if done then return done end

-- These are keys: EXPECTED is the key `promise` (parts/prelude.lua).
local wrong = check_types(DUE, ROSTER, EXPECTED)
if wrong then return wrong end

local before = first_due()
-- Let Redis accept the later writes if it is out of memory (parts/types.lua).
redis.call('ZREM', DUE, '')
local results
results, wrong = settle(settlements, confirms, others)
if wrong then return wrong end
remember(results)
local earliest = first_due()
if earliest and before and earliest < before then
  -- The second argument is the number of events that are due already. Only the earliest is known.
  wake_next(earliest, earliest <= NOW and 1 or 0)
end
return results
