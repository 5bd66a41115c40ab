-- There is no rollback: a script that meets a foreign type half way has written the
-- half before it. So whoever writes checks first: by asking for the type, or by a command that
-- it needs anyway and that would fail.
local function kind(key)
  local sorted = key == DUE or key == GRAVES or key == ALIVE or key == ROSTER or key == PROMISE
  return sorted and 'zset' or 'hash'
end

-- Returns an error reply when one of the given keys is of a foreign type, or may not be looked
-- at, else nil.
local function guard(...)
  for _, key in ipairs({...}) do
    local reply = redis.pcall('TYPE', key)
    local found = reply.ok
    if found ~= 'none' and found ~= kind(key) then
      return reply.err and reply or redis.error_reply(
        'DTCORRUPT the key ' .. key .. ' holds a ' .. found .. ', not a ' .. kind(key))
    end
  end
end

-- Run a verb. Where it fails because a key is of a foreign type, the error reply says which;
-- `failed`, if it is given, sees to what was done before that.
local function named(verb, failed)
  local done, result = pcall(verb)
  if done then return result end
  if failed then failed() end
  return guard(unpack(KEYS)) or error(result, 0)
end
