-- There is no rollback: a script that meets a foreign type half way has written the
-- half before it. So whoever writes checks first.
local function kind(key)
  local sorted = key == DUE or key == GRAVES or key == ALIVE or key == ROSTER or key == PROMISE
  return sorted and 'zset' or 'hash'
end

-- Returns an error reply when one of the given keys is of a foreign type, else nil.
local function guard(...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind(key) then
      return redis.error_reply(
        'DTCORRUPT the key ' .. key .. ' holds a ' .. found .. ', not a ' .. kind(key))
    end
  end
end
