-- Prepended to every script (dtimer/store/scripts.py). Names the shared inputs once,
-- so that no script counts KEYS for itself.
--
-- KEYS      the order of Keys in dtimer/store/keys.py
--   due       sorted set: id -> when it is due, or its lease ends, in µs
--   body      hash: id -> '<expires µs or nothing>,<max_retries>[,<mark>]|<payload>', where the
--             mark is n of an id that was given by a user, and of an occurrence see parts/plan.lua
--   lease     hash: id -> '<token>,<attempt>,<due>,<flags: c cancelled, s occurrence>,<incarnation>'
--   tries     hash: id -> starts so far, of events that wait for a retry
--   dead      hash: id -> '<attempt>,<reason>,<length of error>|<error><body>'
--   graves    sorted set: id -> when it died, in µs
--   sys       hash: v (schema), born (a name of its making), token (the last), paused, totals
--   memo_a, memo_b  hashes: lane -> '<seq>:<result>' (parts/memo.lua)
--   nodes     hash: incarnation -> who that is, as JSON
--   alive     sorted set: incarnation -> when it last asked for work, in µs
--   roster    sorted set: incarnation -> its place among those with free hands
--   promise   sorted set: incarnation -> when it is expected to ask, in µs
--   defs      hash: schedule -> its definition, as JSON that no script reads
--   plans     hash: schedule -> '<max_retries>|<payload>' of its occurrences
--   beats     hash: schedule -> where it stands (parts/plan.lua)
--
-- ARGV[1]   now, in µs since the epoch; '' asks this server's clock
-- ARGV[2]   '<lane>:<seq>', the name of this operation; '' when it has none
--
-- An id is in exactly one of: due (and body), or dead (and graves). A missing reply is
-- false and not nil, and 0 is true.
local DUE, BODY, LEASE, TRIES, DEAD, GRAVES, SYS, MEMO_A, MEMO_B, NODES, ALIVE, ROSTER, PROMISE,
  DEFS, PLANS, BEATS = unpack(KEYS)

local NOW = tonumber(ARGV[1])
if not NOW then
  local t = redis.call('TIME')
  NOW = t[1] * 1000000 + t[2]
end

-- The version of all this (dtimer/store/namespace.py).
local SCHEMA = '1'

-- Lua writes large numbers with an exponent; Redis and people want digits. Where a long has
-- 64 bits %d writes them, at a fifth of the cost of %.0f, which is that of a command.
local WHOLE = string.format('%d', 9007199254740991) == '9007199254740991' and '%d' or '%.0f'
local function digits(n)
  return string.format(WHOLE, n)
end
