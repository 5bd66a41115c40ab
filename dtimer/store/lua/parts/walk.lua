-- Where a walk through a sorted set goes on, and where it ends: at a place (score, id), which is
-- one whether an event is still there or not.

-- A page ends here, although it could have more: large payloads take long.
local MOST_PAGE = 1000000

-- Tell whether the first place comes after the second, in the order of a sorted set. Ids of one
-- score go by their bytes; Lua's own comparison goes by the locale of the server.
local function comes_after(score, id, other_score, other_id)
  score, other_score = tonumber(score), tonumber(other_score)
  if score ~= other_score then return score > other_score end
  for i = 1, math.min(#id, #other_id) do
    local byte, other = string.byte(id, i), string.byte(other_id, i)
    if byte ~= other then return byte > other end
  end
  return #id > #other_id
end

-- Return the rank of the first that comes after a place.
local function rank_after(key, score, id)
  if redis.call('ZSCORE', key, id) == score then return redis.call('ZRANK', key, id) + 1 end
  local low = redis.call('ZCOUNT', key, '-inf', '(' .. score)
  local high = low + redis.call('ZCOUNT', key, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local there = redis.call('ZRANGE', key, middle, middle)[1]
    if comes_after(score, there, score, id) then high = middle else low = middle + 1 end
  end
  return low
end

-- Return the score and the id of the last place up to a score; '' and '' for none.
local function last_place(key, high)
  local last = redis.call(
    'ZREVRANGEBYSCORE', key, high, '-inf', 'WITHSCORES', 'LIMIT', '0', '1')
  return last[2] or '', last[1] or ''
end
