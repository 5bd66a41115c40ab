-- Comes before every script (dtimer/store/scripts.py). Names the inputs that all scripts share, so
-- that a script need not index KEYS.
--
-- Commands  time
--
-- KEYS      in the order of Keys in dtimer/store/keys.py. Each local has the name of its key, but
--           DIED is graves, EXPECTED is promise, DEFINITIONS is defs, TEMPLATES is plans, and
--           STATES is beats
--   due       sorted set: id -> when it is due or, if leased, when its lease ends, in µs
--   body      hash: id -> its body (parts/format.lua, which also describes the next forms)
--   lease     hash: id -> its lease, if it is in flight
--   tries     hash: id -> how often it was started, for events that wait for a retry
--   dead      hash: id -> its dead letter
--   graves    sorted set: id -> when it became a dead letter, in µs
--   sys       hash: v (schema), born (random mark of the namespace), token (the last one
--             issued), paused, totals
--   memo_a, memo_b  hashes: session -> '<seq>:<result>' of its last operation: memo_a of the
--             current period, memo_b of the period before (parts/session.lua)
--   nodes     hash: incarnation -> '<joined µs>|<id, host and pid as JSON>'
--   alive     sorted set: incarnation -> when it last claimed, in µs
--   roster    sorted set: incarnation -> its place among the nodes with free handler threads
--             (parts/wake.lua)
--   promise   sorted set: incarnation -> when it is expected to claim, in µs
--   defs      hash: schedule -> its definition, as JSON that no script reads
--   plans     hash: schedule -> the template of its occurrences
--   beats     hash: schedule -> its state (parts/schedule.lua)
--
-- ARGV[1]   now, in µs since the epoch; '' to read the server's clock
-- ARGV[2]   '<session>:<seq>', the name of this operation; '' if it has none
--
-- An id is either in due and body, or in dead and graves, never in both. In Lua, a missing reply
-- is false and not nil, and 0 is true.
local DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, MEMO_A, MEMO_B, NODES, ALIVE, ROSTER, EXPECTED,
  DEFINITIONS, TEMPLATES, STATES = unpack(KEYS)

local OPERATION = ARGV[2]
local NOW = tonumber(ARGV[1])
if not NOW then
  local t = redis.call('TIME')
  NOW = t[1] * 1000000 + t[2]
end

-- The version of the stored formats (dtimer/store/namespace.py says when to raise it).
local SCHEMA = '2'

-- Format a whole number without the exponent that Lua gives to large ones. One %.0f takes as long
-- as a Redis command, and %d takes a fifth of that. But %d is only correct for large numbers if a
-- C long has 64 bits.
local WHOLE = string.format('%d', 9007199254740991) == '9007199254740991' and '%d' or '%.0f'
local function digits(n)
  return string.format(WHOLE, n)
end
