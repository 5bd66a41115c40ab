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
--   sys       hash: v (the version of the stored forms), born (random mark of the namespace),
--             token (the last one issued), paused, heard:<version> (when the last node of a version
--             left), n:<total>, n:late:<bucket> (how late events were claimed), history:<hour of
--             the day>, history:end, and owner:<owner>: the version and the names of the schedules
--             that the owner declares in a block (parts/owners.lua)
--   memo_a    hash: session -> '<seq>:<result>' of its last operation in the current period, w (when
--             it began) and v (as in sys) (parts/session.lua)
--   memo_b    hash: the same of the period before
--   nodes     hash: incarnation -> its registration
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

-- The latest version of the stored forms that this dtimer knows, and the one before, which it knows,
-- too (dtimer/store/namespace.py says when to raise them). VERSION is that of the namespace, in which
-- everything is written; a script of `Kind once` knows it after `recall`.
local SCHEMA, PREVIOUS = '2', '2'
local VERSION

-- Format a whole number without the exponent that Lua gives to large ones. One %.0f takes as long
-- as a Redis command, and %d takes a fifth of that. But %d is only correct for large numbers if a
-- C long has 64 bits.
local WHOLE = string.format('%d', 9007199254740991) == '9007199254740991' and '%d' or '%.0f'
local function digits(n)
  return string.format(WHOLE, n)
end
