-- Put back dead letters that were exported before, perhaps from another namespace. A letter whose
-- id is pending or dead here is skipped, so a second call changes nothing.
--
-- Kind      once
-- Uses      types session
-- Commands  hexists hset zadd zscore
--
-- Arguments
--   letters...  three elements for each letter:
--     id
--     died      in µs since the epoch
--     letter    as the hash of dead letters stores it
--
-- Returns   how many were put back
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, DEAD, DIED)
if wrong then return wrong end

local restored = 0
for i = letters, #ARGV, 3 do
  local id, died, letter = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if not redis.call('ZSCORE', DUE, id) and redis.call('HEXISTS', DEAD, id) == 0 then
    redis.call('HSET', DEAD, id, letter)
    redis.call('ZADD', DIED, died, id)
    restored = restored + 1
  end
end
remember(digits(restored))
return digits(restored)
