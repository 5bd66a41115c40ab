-- Apply the misfire and overlap policies to an occurrence that is due.
--
-- Commands  hset zscore
-- Format    with_missed
-- Reads     advance has_more is_due next_after occurrence_id parse_occurrence_id postpone
-- Reads     read_state store_pending write_state
-- Sets      decide

-- How many missed occurrences misfire `a` delivers at most after a pause.
local MOST_BEHIND = 1000
-- An occurrence that waits is checked again after this time, in µs.
local REMIND = 1000000

-- Decide about an occurrence that is due. If it may start now, return true and its body, which has
-- the number of missed occurrences that it also stands for. If it was moved or dropped, return
-- false.
local function decide(id, body)
  local schedule, nominal = parse_occurrence_id(id)
  local state = schedule and read_state(schedule)
  if not state or state.next ~= nominal then return true, body end

  local running_until = state.running ~= '' and
    redis.call('ZSCORE', DUE, occurrence_id(schedule, state.running))
  if running_until and state.overlap == 'q' then
    -- Wait for the running occurrence to end. If its node dies, wait for its lease to end.
    postpone(schedule, state, id, math.max(tonumber(running_until), NOW) + REMIND)
    return false
  end

  local latest, missed = tonumber(nominal), tonumber(state.gap) or 0
  local after = next_after(state, latest)
  -- `behind` is true if this occurrence stands for all missed ones, or is dropped with them. If
  -- it is false (misfire `a`), the missed occurrences are delivered one by one.
  local behind = running_until and state.overlap == 's' or state.misfire ~= 'a'
  if state.every == '' then
    while behind and after and is_due(schedule, state, after) do
      missed = missed + 1
      latest = after
      after = next_after(state, latest)
    end
    if not after and has_more(state) then
      -- The next nominal time is unknown. Wait until a node adds more. Replace the past times in
      -- the list by the last of them, so that the list stays short. The node adds the times after
      -- it. `gap` counts the others, and not the last, which is counted again from the list.
      if latest > tonumber(nominal) then
        state.ahead, state.gap = digits(latest), digits(missed - 1)
      end
      postpone(schedule, state, id, NOW + REMIND)
      return false
    end
  elseif after and is_due(schedule, state, after) then
    local every = tonumber(state.every)
    -- How many occurrences after this one are due. With misfire `a`, pass over only those that
    -- exceed MOST_BEHIND.
    local over = math.floor((math.min(NOW, tonumber(state.stop) or NOW) - after) / every) + 1
    while not is_due(schedule, state, after + (over - 1) * every) do over = over - 1 end
    if not behind then over = over - (MOST_BEHIND - 1) end
    if over > 0 then
      missed = over
      latest = after + (over - 1) * every
      after = next_after(state, latest)
    end
  end
  state.gap = ''

  if running_until and state.overlap == 's' then
    remove(id)
    count('skipped', missed + 1)
    advance(schedule, state, after)
    return false
  end
  if state.misfire == 's' and missed > 0 then
    -- Drop each occurrence whose successor is due as well. The latest one is only
    -- late, and becomes the pending occurrence.
    remove(id)
    count('skipped', missed)
    if state.every == '' and after then
      state.ahead = digits(after) .. (state.ahead ~= '' and ',' .. state.ahead or '')
    end
    state.next, state.waits = digits(latest), ''
    store_pending(schedule, state)
    write_state(schedule, state)
    return false
  end
  count('coalesced', missed)
  state.last, state.running = digits(latest), nominal
  advance(schedule, state, after)
  if missed > 0 then
    body = with_missed(body, missed)
    redis.call('HSET', BODY, id, body)
  end
  return true, body
end
