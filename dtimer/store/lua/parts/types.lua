-- Redis does not roll back. If a script fails half way because a key has the wrong type, its
-- earlier writes stay. So a script checks types before its first write: with TYPE, or with a
-- command that it needs anyway and that fails on a wrong type. parts/prelude.lua says what each key
-- holds.
--
-- If Redis is out of memory, it refuses a script whose first write may need more memory. It allows
-- a ZREM or an HDEL, and then all later writes of that script. So a script that must not be refused
-- begins with a ZREM that removes nothing.
--
-- Commands  type

-- The arguments are keys, each under the local that the prelude gives it: DUE, EXPECTED and so on.
-- Return an error reply if one of the given keys has the wrong type or may not be read, else nil.
local function check_types(...)
  for _, key in ipairs({...}) do
    local reply = redis.pcall('TYPE', key)
    local found = reply.ok
    if found ~= 'none' then
      local sorted = key == DUE or key == DIED or key == ALIVE or key == ROSTER or key == EXPECTED
      local kind = sorted and 'zset' or 'hash'
      if found ~= kind then
        return reply.err and reply or redis.error_reply(
          'DTCORRUPT the key ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
      end
    end
  end
end

-- Call the function `verb`, and return its result. If it fails, call the function `failed`, if
-- given: it records what `verb` has done so far. Then return an error reply that names the key with
-- the wrong type. If all types are right, raise the error again.
local function run_checked(verb, failed)
  local done, result = pcall(verb)
  if done then return result end
  if failed then failed() end
  return check_types(unpack(KEYS)) or error(result, 0)
end
