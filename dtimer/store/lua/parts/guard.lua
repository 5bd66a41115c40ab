-- There is no rollback: a script that meets a foreign type half way has written the
-- half before it. So whoever writes checks first.
local TYPES = {
  [DUE] = 'zset', [BODY] = 'hash', [LEASE] = 'hash', [TRIES] = 'hash', [DEAD] = 'hash',
  [GRAVES] = 'zset', [SYS] = 'hash', [MEMO_A] = 'hash', [MEMO_B] = 'hash',
  [NODES] = 'hash', [ALIVE] = 'zset', [ROSTER] = 'zset', [PROMISE] = 'zset',
  [DEFS] = 'hash', [PLANS] = 'hash', [BEATS] = 'hash',
}

-- Returns an error reply when one of the given keys is of a foreign type, else nil.
local function guard(...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= TYPES[key] then
      return redis.error_reply(
        'DTCORRUPT the key ' .. key .. ' holds a ' .. found .. ', not a ' .. TYPES[key])
    end
  end
end
