-- Try every command that the scripts use, each in a form that changes nothing. What this
-- client may not run, or the server refuses for another reason, is told and not raised.
-- Also in a namespace that is not open yet, and may be foreign.
--
-- ARGV[1]   never '': the prelude would ask for the time, which may be what is refused
--
-- Returns   command and what it was refused for, in turn; nothing when all went well
local NOBODY = '\1nobody'

-- A key that is not there, to be deleted: of ours if there is one.
local absent = string.sub(DUE, 1, -4) .. 'nothing'
for _, key in ipairs(KEYS) do
  local found = redis.pcall('TYPE', key)
  if found.ok == 'none' then absent = key end
end

local refused = {}
for _, words in ipairs({
  {'DEL', absent},
  {'HDEL', BODY, NOBODY},
  {'HEXISTS', BODY, NOBODY},
  {'HGET', BODY, NOBODY},
  {'HKEYS', BEATS},
  {'HLEN', BODY},
  {'HMGET', BODY, NOBODY},
  {'HRANDFIELD', BODY, '1'},
  {'PUBLISH', string.sub(DUE, 1, -4) .. 'echo:nobody', ''},
  {'RENAME', SYS, SYS},
  {'TIME'},
  {'TYPE', DUE},
  {'ZADD', DUE, 'XX', '0', NOBODY},
  {'ZCARD', DUE},
  {'ZCOUNT', DUE, '0', '0'},
  {'ZRANDMEMBER', DUE, '1'},
  {'ZRANGE', DUE, '0', '0'},
  {'ZRANGEBYSCORE', DUE, '0', '0', 'LIMIT', '0', '1'},
  {'ZRANK', DUE, NOBODY},
  {'ZREM', DUE, NOBODY},
  {'ZREVRANGEBYSCORE', DUE, '0', '0', 'LIMIT', '0', '1'},
  {'ZSCORE', DUE, NOBODY},
  -- Last, since an HDEL has to follow.
  {'HINCRBY', SYS, NOBODY, '0'},
  {'HSET', SYS, NOBODY, ''},
}) do
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then
    refused[#refused + 1] = words[1]
    refused[#refused + 1] = reply.err
  elseif words[3] == NOBODY and (words[1] == 'HINCRBY' or words[1] == 'HSET') then
    redis.pcall('HDEL', SYS, NOBODY)
  end
end
return refused
