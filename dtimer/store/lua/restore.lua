-- Put dead letters back that were taken along from elsewhere. One whose id is pending here,
-- or dead already, is left out: so doing it again changes nothing.
--
-- Uses      guard memo
--
-- ARGV[3] and on, for each letter in turn:
--             id
--             died     in µs since the epoch
--             letter   as the hash of dead letters has it
--
-- Returns   how many were put back
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = guard(DUE, DEAD, GRAVES)
if wrong then return wrong end

local restored = 0
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  if not redis.call('ZSCORE', DUE, id) and redis.call('HEXISTS', DEAD, id) == 0 then
    redis.call('HSET', DEAD, id, ARGV[i + 2])
    redis.call('ZADD', GRAVES, ARGV[i + 1], id)
    restored = restored + 1
  end
end
remember(digits(restored))
return digits(restored)
