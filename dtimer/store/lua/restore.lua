-- Put back dead letters that were exported before, perhaps from another namespace. A letter whose
-- id is pending or dead here is skipped, so a second call changes nothing.
--
-- Uses      guard session
--
-- ARGV[3]   and on, three for each letter:
--             id
--             died     in µs since the epoch
--             letter   in the format of the hash of dead letters
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
