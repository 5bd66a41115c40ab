-- The state of a schedule, and the ids of its occurrences.
--
-- Commands  hget hset
-- Sets      occurrence_id parse_occurrence_id read_state write_state

-- The shortest interval, in µs.
local SHORTEST = 10000
-- The fields of a state, in the order in which they are stored.
local FIELDS = {
  'print', 'every', 'misfire', 'overlap', 'jitter', 'stop', 'left', 'paused', 'next', 'last',
  'running', 'ahead', 'final', 'gap', 'anchor', 'waits', 'grace', 'expires', 'owner',
}
-- The pattern of each field; `print` may be anything.
local PATTERNS = {
  every = '^%d*$', misfire = '^[csa]$', overlap = '^[qas]$', jitter = '^%d+$', stop = '^%d*$',
  left = '^%d*$', paused = '^1?$', next = '^%d*$', last = '^%d*$', running = '^%d*$',
  ahead = '^[%d,]*$', final = '^1?$', gap = '^%d*$', anchor = '^%d*$', waits = '^%d*$',
  grace = '^%d*$', expires = '^%d*$', owner = '^[%w_.:/-]*$',
}

-- Return the state of a schedule; nil if there is none or dtimer has not written it. An
-- occurrence of such a schedule is an ordinary event, and the schedule rests until it is
-- declared again.
local function read_state(schedule)
  local text = redis.call('HGET', STATES, schedule)
  if not text or #text > 4000 then return nil end
  local state, i = {}, 1
  for value in string.gmatch(text .. ';', '([^;]*);') do
    state[FIELDS[i] or 'more'] = value
    i = i + 1
  end
  for name, pattern in pairs(PATTERNS) do
    local value = state[name] or '?'
    if not string.find(value, pattern) or (#value > 17 and name ~= 'ahead' and name ~= 'owner') then return nil end
  end
  local every = tonumber(state.every)
  -- A jitter longer than the interval cannot have been written by dtimer, and could make the loop
  -- in `decide` that counts the missed occurrences very long.
  if every and (every < SHORTEST or every < tonumber(state.jitter) or state.anchor == '') then
    return nil
  end
  return state
end

-- Store the state of a schedule.
local function write_state(schedule, state)
  local values = {}
  for i, name in ipairs(FIELDS) do values[i] = state[name] or '' end
  redis.call('HSET', STATES, schedule, table.concat(values, ';'))
end

-- Return the id of the occurrence with a nominal time.
local function occurrence_id(schedule, nominal)
  return schedule .. '@' .. nominal
end

-- Return the schedule and the nominal time that an id names; nil if it is not an occurrence's id.
local function parse_occurrence_id(id)
  return string.match(id, '^(.+)@(%d+)$')
end
