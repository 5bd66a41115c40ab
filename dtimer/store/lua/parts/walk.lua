-- Page through a sorted set. A position is a score and an id, and holds even after its event is
-- gone.
--
-- Commands  zcount zrange zrank zrevrangebyscore zscore

-- End a page early when it has this many bytes, because large payloads take long to send.
local MOST_PAGE = 1000000

-- Return whether the first position comes after the second, in the order of a sorted set. Ids of
-- equal score are compared by bytes. Lua would compare them by the server's locale.
local function comes_after(score, id, other_score, other_id)
  score, other_score = tonumber(score), tonumber(other_score)
  if score ~= other_score then return score > other_score end
  for i = 1, math.min(#id, #other_id) do
    local byte, other = string.byte(id, i), string.byte(other_id, i)
    if byte ~= other then return byte > other end
  end
  return #id > #other_id
end

-- Return the rank of the first member after a position.
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

-- Return score and id of the last member up to a score; '' and '' if there is none.
local function last_place(key, high)
  local last = redis.call(
    'ZREVRANGEBYSCORE', key, high, '-inf', 'WITHSCORES', 'LIMIT', '0', '1')
  return last[2] or '', last[1] or ''
end
