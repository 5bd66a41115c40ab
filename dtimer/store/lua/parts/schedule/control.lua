-- Change the pending occurrence of a schedule.
--
-- Commands  hdel hget hset zadd zrem zscore
-- Format    occurrence_body parse_template with_payload
-- Reads     due_of expiry_of occurrence_id parse_occurrence_id read_state write_state
-- Sets      advance ended forget let_start postpone renew_payload store_pending try_writes

-- Store the pending occurrence in DUE, as a post does. An event with the same id is replaced:
-- it may be left from a schedule that was ended and declared again.
local function store_pending(schedule, state)
  local template = redis.call('HGET', TEMPLATES, schedule)
  if state.next ~= '' and template then
    local max_retries, payload = parse_template(template)
    if not max_retries then return end
    local id, due = occurrence_id(schedule, state.next), due_of(schedule, state, state.next)
    local added = redis.call('ZADD', DUE, digits(due), id)
    local expires = expiry_of(state, due)
    redis.call('HSET', BODY, id, occurrence_body(expires, max_retries, state.next, payload))
    if added == 0 then
      redis.call('HDEL', LEASE, id)
      redis.call('HDEL', TRIES, id)
    end
    if redis.call('HDEL', DEAD, id) > 0 then redis.call('ZREM', DIED, id) end
  end
end

-- Store the template again if a codec has written the same payload in other bytes, such as under a
-- new key. The pending occurrence needs these bytes, too, once the old key is gone.
local function renew_payload(schedule, state, template)
  if redis.call('HGET', TEMPLATES, schedule) == template then return end
  redis.call('HSET', TEMPLATES, schedule, template)
  local id, _, payload = occurrence_id(schedule, state.next), parse_template(template)
  local body = payload and with_payload(redis.call('HGET', BODY, id), payload)
  if body then redis.call('HSET', BODY, id, body) end
end

-- Before the pending occurrence is removed, try the commands that will replace it by the next one,
-- in a form that changes nothing. If a command is refused, for example because a permission is
-- missing, the script fails now. If it failed half way, no occurrence would be pending. The ZREM
-- comes first: if Redis is out of memory, it allows a ZREM as the first write of a script, and
-- then all later writes of that script.
local function try_writes(schedule, state)
  redis.call('ZREM', DUE, '')
  redis.call('ZADD', DUE, 'XX', '0', '')
  redis.call('HDEL', BODY, '')
  write_state(schedule, state)
end

-- Make `after` the pending occurrence in place of the current one. The current one is over, and
-- counts against `left`.
local function advance(schedule, state, after)
  if state.left ~= '' then state.left = digits(math.max(0, tonumber(state.left) - 1)) end
  state.next = after and state.left ~= '0' and digits(after) or ''
  state.waits = ''
  store_pending(schedule, state)
  write_state(schedule, state)
end

-- End a schedule. An occurrence in flight runs on.
local function forget(schedule, state)
  if state and state.next ~= '' then remove(occurrence_id(schedule, state.next)) end
  redis.call('HDEL', DEFINITIONS, schedule)
  redis.call('HDEL', TEMPLATES, schedule)
  redis.call('HDEL', STATES, schedule)
end

-- Move the pending occurrence to a later time, and record that time. If the user reschedules the
-- occurrence, its time differs from the recorded one, and `let_start` does not move it.
local function postpone(schedule, state, id, when)
  state.waits = digits(when)
  redis.call('ZADD', DUE, state.waits, id)
  write_state(schedule, state)
end

-- Let the pending occurrence start now, if it is still at the time to which `postpone` moved it. The
-- caller then writes the state.
local function let_start(schedule, state)
  local id = occurrence_id(schedule, state.next)
  if state.waits ~= '' and tonumber(redis.call('ZSCORE', DUE, id)) == tonumber(state.waits) then
    -- If the clock was set back meanwhile, the occurrence may not be due any more.
    state.waits = digits(math.max(NOW, due_of(schedule, state, state.next)))
    redis.call('ZADD', DUE, 'XX', state.waits, id)
  end
end

-- Record that an occurrence has ended, whether it succeeded or not. If the next occurrence has
-- waited for it, the next one may start.
local function ended(id)
  local schedule, nominal = parse_occurrence_id(id)
  local state = schedule and read_state(schedule)
  if not state or state.running ~= nominal then return end
  state.running = ''
  let_start(schedule, state)
  write_state(schedule, state)
end
